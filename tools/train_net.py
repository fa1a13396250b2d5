"""Train or evaluate one task of a schedule with detectron2, by its own command line; see docs/detectron2.md.

python tools/train_net.py --config-file configs/detectron2/m_owodb/t1.yaml --num-gpus 8 [--resume] [--eval-only] [KEY …]
python tools/train_net.py --config-file configs/detectron2/demo.py --num-gpus 0 [--resume] [--eval-only] [key=value …]
"""

from openworld.plugins.detectron2.command import main

if __name__ == "__main__":
    main()
