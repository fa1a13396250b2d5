"""Fast paths that change no result. Each has the plain path beside it; read that one first."""
