"""python -m bench COMMAND: every benchmark; each is a module with a command of its own."""

from importlib import import_module

import click

from diffcodec.errors import DiffcodecError

COMMANDS = {  # name: module and what it does; modules are loaded when they are used
    "all": ("everything", "Every benchmark, then one page of all results; --quick for a subset."),
    "lossless": ("lossless", "Lossless sizes and times beside other codecs, and the bound."),
    "rd": ("rd", "Rate against PSNR and MS-SSIM of lossy files, beside other codecs."),
    "front": ("front", "Bits against processor time beside other codecs, as a picture."),
    "speed": ("speed", "Times as ratios; growth with pixels, steps, parameters; memory."),
    "overhead": ("overhead", "What relative entropy coding costs beyond the KL."),
    "anatomy": ("anatomy", "Where the bits of a file go."),
    "report": ("report", "One page of all results; fills the tables of docs."),
    "replayed": ("replayed", "What coding takes without its network."),
    "gate": ("gate", "Sizes of a few small files against the committed ones."),
    "demo": ("demo", "One photograph, coded, decoded, previewed."),
    "large": ("large", "Time and memory of a large image."),
    "progressive": ("progressive", "What previews cost and show."),
    "reconstructions": ("reconstructions", "The posterior mean beside steps of the flow."),
    "plans": ("plans", "Plans that are found beside geometric levels."),
    "ensembles": ("ensembles", "What self-ensemble gains, by noise level."),
    "ablation": ("ablation", "Choices in the network and the recipe, at equal time."),
    "scaling": ("scaling", "Bits by training time, model size and steps: three pictures."),
    "objectives": ("objectives", "Training objectives in bits, and reflow."),
    "classes": ("classes", "What classes are worth in bits: training with labels and without."),
    "calibrated": ("calibrated", "A network of fixed variance made a codec by a table."),
    "audio": ("audio", "Sound by the same chain, as images of height 1: an experiment."),
    "latent": ("latent", "The chain in the latent of a small autoencoder: an experiment."),
    "samples": ("samples", "How far samples are from images, by sampler and steps."),
    "draws": ("draws", "What coding by several draws of the shared randomness gains."),
    "adaptation": ("adaptation", "What fitting the model to each image gains."),
    "archive": ("archive", "An archive beside single files and other codecs."),
    "finetune": ("finetune", "What fine-tuning gains on images that are alike."),
    "ddpm": ("ddpm", "DDPM's own table of timesteps, rates and distortions."),
    "arithmetic": ("arithmetic", "Integer arithmetic beside float."),
    "gpu": ("gpu", "A checklist for a GPU: exactness, speed, training, memory."),
    "determinism": ("determinism", "Whether the same bytes come out in every setting."),
    "color-sets": ("color_sets", "Which colours images keep to, and what each conversion reaches."),
    "planes": ("planes", "What coders make of the planes that images were converted from."),
    "seams": ("seams", "Steps across the borders of tiles in what is shown."),
    "jpegs": ("jpegs", "PNG files of photographs that have been JPEG, for colour sets."),
    "rooms": ("rooms", "The package's floor plan in figures."),
    "cifar10": ("cifar10", "CIFAR-10 as arrays, checked."),
}


class Lazy(click.Group):
    """Loads a command's module when the command is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order above."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The ``main`` of its module."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"bench.{COMMANDS[cmd_name][0]}").main
        return command

    def invoke(self, ctx: click.Context) -> None:
        """Run a command; what the package says of bad input is one line, as of its own commands.

        Raises:
            click.ClickException: with that line.
        """
        try:
            super().invoke(ctx)
        except DiffcodecError as e:
            raise click.ClickException(str(e)) from e

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with what they are about, without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in COMMANDS.items()])


@click.command(cls=Lazy)
def main() -> None:
    """Benchmarks of diffcodec. Results go to results/bench."""


if __name__ == "__main__":
    main(prog_name="python -m bench")
