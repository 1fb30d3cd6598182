"""The command train."""

import json
from collections.abc import Iterable
from dataclasses import MISSING, fields, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import click

from diffcodec.cli.options import parse_numbers
from diffcodec.cli.program import cli
from diffcodec.cli.running import CommandError, failing_as
from diffcodec.diffusion.variances import VARIANCES

if TYPE_CHECKING:
    from torch import Tensor

    from diffcodec.networks.unet import NetworkConfig
    from diffcodec.training.config import TrainConfig
    from diffcodec.training.trainer import Trainer


POSITIVE = click.IntRange(min=1)


class _TrainCommand(click.Command):
    """Its options take their defaults from the dataclasses of a run, which come with torch."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.params:
            from diffcodec.networks.unet import NetworkConfig
            from diffcodec.training.config import TrainConfig

            kinds = (TrainConfig, NetworkConfig)
            defaults = {f.name: f.default for kind in kinds for f in fields(kind)}
            groups = (_files_options(), _recipe_options(), _network_options(), _machine_options())
            self.params = [_with_default(*each, defaults) for group in groups for each in group]
        return super().get_params(ctx)


Described = tuple[str, str, dict[str, Any]]  # names, help, and what else click.Option takes


def _with_default(
    names: str, description: str, more: dict[str, Any], defaults: dict[str, Any]
) -> click.Option:
    """An option; its default is that of the field of its name, if there is one."""
    declared = names.split()
    name = declared[0].split("/")[0].removeprefix("--").replace("-", "_")
    default = defaults.get(name, MISSING)
    if default is not MISSING:
        if isinstance(default, tuple):
            more |= {"type": parse_numbers, "metavar": "N,N,..."}
            default = ",".join(map(str, default)) or None
        more |= {"default": default, "show_default": True}
    return click.Option(declared, help=description, **more)


def _files_options() -> Iterable[Described]:
    return (
        (
            "--data",
            "Folder of training images, or a file of them (.npy, .npz).",
            {"metavar": "DIR", "required": True},
        ),
        ("--out", "Folder of the run.", {"metavar": "DIR", "required": True}),
        (
            "--labels",
            "Classes of the images in their order, an integer a line: train with labels.",
            {"metavar": "FILE"},
        ),
        (
            "--init",
            "Start from a model's weights, in its shape; --blocks may add to it.",
            {"metavar": "MODEL"},
        ),
        (
            "--resume",
            "Continue the run in --out; what is not given is as it was.",
            {"is_flag": True},
        ),
    )


def _recipe_options() -> Iterable[Described]:
    from diffcodec.training.crops import AUGMENTATIONS
    from diffcodec.training.trainer import LOSSES

    return (
        ("--steps", "Updates of the weights.", {"type": POSITIVE}),
        (
            "--minutes",
            "As many steps as take so long here; validation does not count.",
            {"type": click.FloatRange(min=0, min_open=True)},
        ),
        ("--batch", "Crops in each update.", {"type": click.IntRange(min=8)}),
        ("--crop", "Sides of a crop in pixels.", {"type": POSITIVE}),
        ("--augment", "What is exchanged at random.", {"type": click.Choice(AUGMENTATIONS)}),
        ("--learning-rate", "Peak of the learning rate.", {}),
        (
            "--loss",
            "Code length, DDPM's L_simple, or Improved DDPM's L_hybrid.",
            {"type": click.Choice(list(LOSSES))},
        ),
        (
            "--variance",
            "Of the steps: the network's, or DDPM's beta-tilde (small) or beta (large).",
            {"type": click.Choice(VARIANCES)},
        ),
        ("--seed", "Of weights, crops and noise.", {"type": click.IntRange(min=0)}),
    )


def _network_options() -> Iterable[Described]:
    from diffcodec.diffusion.color import DOMAINS
    from diffcodec.networks.unet import PRESETS

    return (
        (
            "--preset",
            "Shape of the network, where --channels and --blocks are not given.",
            {"type": click.Choice(list(PRESETS)), "default": "default", "show_default": True},
        ),
        ("--channels", "Of the network, from its finest resolution down.", {}),
        ("--blocks", "Residual blocks at each resolution, on the way down and up.", {}),
        ("--color", "Colour domain.", {"type": click.Choice(list(DOMAINS))}),
        (
            "--second-view-up-to",
            "Noise level up to which coding also asks the network for the image mirrored (with "
            "--augment mirror) or turned (with all), and takes the mean; 0 for none.",
            {"type": click.FloatRange(min=0)},
        ),
        (
            "--detail-up-to",
            "Noise level up to which a second network answers; 0 for none.",
            {"type": click.FloatRange(min=0)},
        ),
        ("--detail-blocks", "Residual blocks of that one, if not as many as of the first.", {}),
    )


def _machine_options() -> Iterable[Described]:
    from diffcodec.training.config import DEVICES

    return (
        ("--accumulate", "Passes in which a batch is worked on.", {"type": POSITIVE}),
        ("--precision", "Of training.", {"type": click.Choice(["bfloat16", "float32"])}),
        ("--compile/--no-compile", "Compile the network first.", {}),
        ("--device", "auto is a GPU if there is one.", {"type": click.Choice(DEVICES)}),
        ("--tensorboard", "Write the log for TensorBoard too.", {"is_flag": True}),
    )


@cli.command(cls=_TrainCommand, short_help="Train a model on a folder of images.")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    *,
    data: str,
    out: str,
    resume: bool,
    init: str | None,
    minutes: float | None,
    labels: str | None,
    **_: Any,
) -> None:
    """Train a model on a folder of images.

    The run writes OUT/model.safetensors: a model for --model; and OUT/float.safetensors, the same
    before it was quantised.
    """
    from diffcodec.training.data import read_labels
    from diffcodec.training.devices import joined_processes
    from diffcodec.training.trainer import CHECKPOINT, CONFIG, Trainer

    if resume and init is not None:
        raise click.UsageError("--resume continues with the run's own weights; leave out --init")
    if minutes is not None and (resume or _is_given(ctx, "steps")):
        raise click.UsageError("--minutes sets the number of steps of a new run; give only one")
    folder = Path(out)
    with failing_as(out):
        if folder.exists() and not folder.is_dir():
            raise CommandError("it is not a folder; give another")
        has_checkpoint = (folder / CHECKPOINT).is_file()
        if has_checkpoint and not resume:
            raise CommandError(
                "it holds a run already; give --resume to continue it, or another folder"
            )
        if resume and not has_checkpoint:
            raise CommandError("it holds no run to continue; leave out --resume")
        config = _train_config(ctx, folder / CONFIG if resume else None)
    weights = None
    if init is not None:
        network, weights = _initial_network(ctx, init, config.network)
        config = replace(config, network=network)
    if labels is not None and not config.network.classes:
        with failing_as(labels):
            classes = int(read_labels(Path(labels)).max()) + 1
        config = replace(config, network=replace(config.network, classes=classes))
    _check_shape(config.network, config.crop)
    with failing_as(data), joined_processes(config.device):
        trainer = Trainer(config, folder, weights)
        with failing_as(out):
            folder.mkdir(parents=True, exist_ok=True)
            if resume:
                _resume(trainer)
            elif minutes is not None:
                trainer.plan_steps(minutes)
            trainer.run()


def _check_shape(shape: "NetworkConfig", crop: int) -> None:
    for name, blocks in (("blocks", shape.blocks), ("detail-blocks", shape.of_detail().blocks)):
        if len(shape.channels) != len(blocks):
            raise click.UsageError(f"--channels and --{name} need as many numbers as each other")
    if shape.detail_blocks and not shape.detail_up_to:
        raise click.UsageError("--detail-blocks needs --detail-up-to")
    if crop % shape.multiple:
        raise click.UsageError(f"--crop must be a multiple of {shape.multiple} for this network")


def _initial_network(
    ctx: click.Context, init: str, wanted: "NetworkConfig"
) -> tuple["NetworkConfig", dict[str, "Tensor"]]:
    """The weights to start from and the shape to train: theirs, with more blocks if given."""
    from diffcodec.models.model import load_weights

    with failing_as(init):
        network, weights = load_weights(init)
    if any(_is_given(ctx, name) for name in ("preset", "channels", "color")):
        raise click.UsageError("--init has a shape; leave out --preset, --channels and --color")
    if _is_given(ctx, "blocks"):
        _check_added("--blocks", wanted.blocks, network.blocks)
        network = replace(network, blocks=wanted.blocks)
    if _is_given(ctx, "detail_up_to"):
        network = replace(network, detail_up_to=wanted.detail_up_to)
    if not network.detail_up_to:
        network = network.of_main()
    if _is_given(ctx, "detail_blocks"):
        _check_added("--detail-blocks", wanted.detail_blocks, network.of_detail().blocks)
        network = replace(network, detail_blocks=wanted.detail_blocks)
    view, up_to = wanted.second_view, wanted.second_view_up_to
    return replace(network, second_view=view, second_view_up_to=up_to), weights


def _check_added(option: str, blocks: tuple[int, ...], has: tuple[int, ...]) -> None:
    if len(blocks) != len(has) or any(a < b for a, b in zip(blocks, has, strict=True)):
        raise click.UsageError(
            f"--init has blocks {','.join(map(str, has))}; {option} may only add to each"
        )


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def _train_config(ctx: click.Context, saved: Path | None) -> "TrainConfig":
    """The configuration from the options, and from a saved one where an option is not given."""
    from diffcodec.networks.unet import PRESETS, NetworkConfig
    from diffcodec.training.config import INIT_WARMUP, VIEW_OF_AUGMENTATION, TrainConfig

    try:
        run: dict[str, Any] = json.loads(saved.read_text()) if saved else {"network": {}}
        network = run.pop("network")
    except (ValueError, KeyError) as e:
        raise CommandError(f"its config.json is damaged ({e}); start a new run") from e
    if saved is None and ctx.params["init"] is not None:
        run["warmup"] = INIT_WARMUP
    if saved is None or _is_given(ctx, "preset"):
        network |= PRESETS[ctx.params["preset"]].to_dict()
    for part, kind in ((run, TrainConfig), (network, NetworkConfig)):
        for name in {f.name for f in fields(kind)} & set(ctx.params):
            value = ctx.params[name]
            if _is_given(ctx, name) or (name not in part and value is not None):
                part[name] = value
    if saved is None:
        network["second_view"] = VIEW_OF_AUGMENTATION[run["augment"]]
    return TrainConfig(**run, network=NetworkConfig.from_dict(network))


def _resume(trainer: "Trainer") -> None:
    try:
        trainer.resume()
    except (RuntimeError, LookupError, ValueError, EOFError, UnpicklingError) as e:
        raise CommandError(
            f"its checkpoint is damaged or of another network ({type(e).__name__}); "
            "give the options that the run was started with"
        ) from e
