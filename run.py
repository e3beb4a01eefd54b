"""python run.py model=meddiffusion data=mimic"""

import hydra
from omegaconf import DictConfig

from ehrlab.run.main import main


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def app(cfg: DictConfig) -> None:
    main(cfg)


if __name__ == "__main__":
    app()
