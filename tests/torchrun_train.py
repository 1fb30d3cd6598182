"""Started by torchrun: the command train, with a note of what this process did.

torchrun --nproc-per-node N tests/torchrun_train.py NOTES ARGUMENTS...

Writes NOTES/RANK.pt: the weights at the end, and for each pass its step and rows of the batch.
"""

import os
import sys
from pathlib import Path

import torch
from double import train_in_double

from diffcodec.cli.program import cli
from diffcodec.diffusion.plan import geometric_plan
from diffcodec.training import crops, trainer, validation
from diffcodec.training.crops import CropSampler

validation.CROPS = validation.BATCH = crops.CALIBRATION_CROPS = 8
trainer.plans_from = lambda _: {"default": geometric_plan(4)}


def main(notes: Path, *arguments: str) -> None:
    passes = []
    batch, run = CropSampler.batch, trainer.Trainer.run

    def noted_batch(self, size, seed, step, rows=slice(None)):
        if rows != slice(None):  # not of validation
            passes.append((step, list(range(size))[rows]))
        return batch(self, size, seed, step, rows)

    def noted_run(self):
        run(self)
        state = {"model": self.model.state_dict(), "ema": self.ema, "passes": passes}
        torch.save(state, notes / f"{os.environ.get('RANK', 'alone')}.pt")

    CropSampler.batch, trainer.Trainer.run = noted_batch, noted_run
    cli(arguments, standalone_mode=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_in_double()
    main(Path(sys.argv[1]), *sys.argv[2:])
