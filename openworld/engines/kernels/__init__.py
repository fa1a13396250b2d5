"""Fast paths that do not change results. Each module names the plain path beside it; read that one first."""
