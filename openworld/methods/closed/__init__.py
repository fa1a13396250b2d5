"""The closed detector: plain Faster R-CNN that never says unknown (Ren et al., NeurIPS 2015)."""
