"""ORE: Towards Open World Object Detection (Joseph et al., CVPR 2021)."""
