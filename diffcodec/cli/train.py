"""The command train."""

import json
import math
from collections.abc import Iterable
from dataclasses import MISSING, fields, replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffcodec.cli.options import (
    MINUTES,
    PATH,
    POSITIVE,
    POSITIVE_NUMBER,
    SEED,
    Finite,
    ModelPath,
    parse_numbers,
)
from diffcodec.cli.program import Command, cli, examples
from diffcodec.cli.running import CommandError, check_device, discarding_unwritten, failing_as
from diffcodec.errors import DiffcodecError

if TYPE_CHECKING:
    from torch import Tensor

    from diffcodec.networks.config import NetworkConfig
    from diffcodec.training.config import TrainConfig

EXPERT = "UP_TO[:BLOCKS[:CHANNELS[:PATCH]]]"


class _TrainCommand(Command):
    """Its options take their defaults from the dataclasses of a run, which come with torch."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self.params:
            from diffcodec.networks.config import NetworkConfig, UNetConfig
            from diffcodec.training.config import TrainConfig

            kinds = (TrainConfig, NetworkConfig, UNetConfig)
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
            default = ",".join(map(str, default))
        more |= {"default": default, "show_default": True}
    if isinstance(more.get("type"), click.IntRange | click.FloatRange):
        more |= {"metavar": "N" if isinstance(more["type"], click.IntRange) else "X"}
    return click.Option(declared, help=description, **more)


def _files_options() -> Iterable[Described]:
    return (
        (
            "--data",
            "Folder of training images, or a file of them (.npy, .npz).",
            {"type": PATH, "metavar": "DIR", "required": True},
        ),
        ("--out", "Folder of the run.", {"type": PATH, "metavar": "DIR", "required": True}),
        (
            "--labels",
            "Classes of the images in their order, an integer a line: train with labels.",
            {"type": PATH, "metavar": "FILE"},
        ),
        (
            "--init",
            "Start from a model's weights, in its shape; --blocks may add to it.",
            {"type": ModelPath(readable=False), "metavar": "MODEL"},
        ),
        (
            "--resume",
            "Continue the run in --out; what is not given is as it was.",
            {"is_flag": True},
        ),
    )


def _recipe_options() -> Iterable[Described]:
    from diffcodec.training.run import CHOICES, RANGES

    return (
        ("--steps", "Updates of the weights.", {"type": POSITIVE}),
        (
            "--minutes",
            "Instead: that the run takes, compiling, validations and the quantised model counted.",
            {"type": MINUTES},
        ),
        ("--batch", "Crops in each update.", {"type": click.IntRange(min=RANGES["batch"][0])}),
        ("--crop", "Sides of a crop in pixels.", {"type": POSITIVE}),
        ("--augment", "What is exchanged at random.", {"type": click.Choice(CHOICES["augment"])}),
        ("--learning-rate", "Peak of the learning rate.", {"type": POSITIVE_NUMBER}),
        (
            "--loss",
            "Code length, DDPM's L_simple, Improved DDPM's L_hybrid, v's or flow matching's.",
            {"type": click.Choice(CHOICES["loss"])},
        ),
        (
            "--variance",
            "Of the steps: the network's, or DDPM's beta-tilde (small) or beta (large).",
            {"type": click.Choice(CHOICES["variance"])},
        ),
        ("--seed", "Of weights, crops and noise.", {"type": SEED}),
    )


def _network_options() -> Iterable[Described]:
    from diffcodec.diffusion.color import DOMAINS
    from diffcodec.networks.config import BACKBONES, PRESETS

    return (
        (
            "--preset",
            "Shape of the network, where --channels and --blocks are not given.",
            {"type": click.Choice(list(PRESETS)), "default": "default", "show_default": True},
        ),
        (
            "--backbone",
            "Of the network; a dit, a transformer in float arithmetic, has a shape of its own.",
            {"type": click.Choice(BACKBONES)},
        ),
        ("--channels", "Of the network, from its finest resolution down.", {}),
        ("--blocks", "Residual blocks at each resolution, on the way down and up.", {}),
        ("--color", "Colour domain.", {"type": click.Choice(list(DOMAINS))}),
        (
            "--self-ensemble-up-to",
            "Noise level up to which coding also asks the network for the image mirrored (with "
            "--augment mirror) or turned (with all), and takes the mean; 0 for none.",
            {"type": Finite(min=0)},
        ),
        (
            "--expert experts",
            "Another network for the noise levels up to UP_TO, as --blocks and --channels where it "
            "names none; may be given several times. 0 for none.",
            {"type": parse_expert, "multiple": True, "metavar": EXPERT},
        ),
        (
            "--phases",
            "Code in phases of the 2 x 2 grid, from a first level of M = 8, by three "
            "experts; of --expert the shape of the lowest counts.",
            {"is_flag": True},
        ),
    )


def _machine_options() -> Iterable[Described]:
    from diffcodec.training.run import CHOICES

    return (
        ("--accumulate", "Passes in which a batch is worked on.", {"type": POSITIVE}),
        ("--precision", "Of training.", {"type": click.Choice(CHOICES["precision"])}),
        ("--compile/--no-compile", "Compile the network first.", {}),
        ("--device", "auto is a GPU if there is one.", {"type": click.Choice(CHOICES["device"])}),
        ("--tensorboard", "Write the log for TensorBoard too.", {"is_flag": True}),
        ("--quiet", "Say nothing but errors.", {"is_flag": True}),
    )


@cli.command(
    cls=_TrainCommand,
    short_help="Train a model on a folder of images.",
    epilog=examples(
        "diffcodec train --data photos --out run --init photo --minutes 30",
    ),
)
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
    device: str,
    quiet: bool,
    **_: Any,
) -> None:
    """Train a model on a folder of images.

    The run writes OUT/model.safetensors: a model for --model; and OUT/float.safetensors, the same
    before it was quantised. Ctrl-C ends it so that --resume goes on from its last step.
    """
    from diffcodec.training.config import with_classes
    from diffcodec.training.data import find_images
    from diffcodec.training.devices import joined_processes

    if resume and init is not None:
        raise click.UsageError("--resume continues with the run's own weights; leave out --init")
    if minutes is not None and (resume or _is_given(ctx, "steps")):
        raise click.UsageError("--minutes sets the number of steps of a new run; give only one")
    check_device(device)
    if not Path(data).exists():  # said before what takes seconds to load
        with failing_as(data):
            find_images(Path(data))

    from diffcodec.training.folder import CONFIG
    from diffcodec.training.trainer import Trainer

    folder = Path(out)
    with failing_as(out):
        _check_folder(folder, resume)
        config = _train_config(ctx, folder / CONFIG if resume else None)
    weights = None
    if init is not None:
        network, weights = _initial_network(ctx, init, config.network)
        config = replace(config, network=network)
    if labels is not None:
        with failing_as(labels):
            config = replace(config, network=with_classes(config.network, Path(labels)))
    _check_fit(ctx, config)
    with failing_as(data), joined_processes(config.device):
        trainer = Trainer(config, folder, weights, quiet)
        with failing_as(out):
            folder.mkdir(parents=True, exist_ok=True)
            if resume:
                trainer.resume()
            elif minutes is not None:
                trainer.finish_within(minutes)
            with discarding_unwritten():
                trainer.run()


def _check_folder(folder: Path, resume: bool) -> None:
    from diffcodec.training.folder import CHECKPOINT, found_run

    has_checkpoint = (folder / CHECKPOINT).is_file()
    if folder.exists() and not folder.is_dir():
        raise CommandError("it is not a folder; give another")
    if has_checkpoint and not resume:
        raise CommandError(
            "it holds a run already; give --resume to continue it, or another folder"
        )
    if not resume and (name := found_run(folder)):
        raise CommandError(f"it holds a run already, its {name}; give another folder")
    if resume and not has_checkpoint:
        raise CommandError("it holds no run to continue; leave out --resume")


def parse_expert(text: str) -> tuple[float, dict[str, Any]]:
    """The noise level up to which an expert works, and what differs in its shape."""
    up_to, *rest = text.split(":")
    try:
        level, patch = float(up_to), tuple(map(int, rest[2:]))
    except ValueError:
        level, patch = math.nan, ()
    if len(rest) > 3 or not 0 <= level < math.inf:
        raise ValueError(f"{text!r} is no {EXPERT}.")
    shape: dict[str, Any] = dict(
        zip(("blocks", "channels"), map(parse_numbers, rest[:2]), strict=False)
    )
    return level, shape | ({"patch": patch[0]} if patch else {})


def _shaped(ctx: click.Context, network: "NetworkConfig") -> "NetworkConfig":
    """The network with what the options change of it."""
    from diffcodec.diffusion.losses import SECOND_RATIOS
    from diffcodec.diffusion.quantiser import first_sigma
    from diffcodec.networks.config import PRESETS, PhasesConfig

    main, experts = network.main, network.experts[:-1]
    if _is_given(ctx, "preset"):
        main = PRESETS[ctx.params["preset"]]
    if _is_given(ctx, "backbone") and ctx.params["backbone"] != main.backbone:
        main = PRESETS["dit" if ctx.params["backbone"] == "dit" else "default"]
    given = {n: ctx.params[n] for n in ("channels", "blocks", "color") if _is_given(ctx, n)}
    try:
        main = replace(main, **given)
        if _is_given(ctx, "experts"):
            experts = tuple(
                (up_to, replace(main, **shape))
                for up_to, shape in sorted(ctx.params["experts"], key=itemgetter(0))
                if up_to > 0
            )
        phases = network.phases
        if ctx.params["phases"] and phases is None:
            phases = PhasesConfig()
            first = first_sigma(phases.quantiser)
            lowest = experts[0][1] if experts else main
            experts = ((1.2 * first, lowest), (SECOND_RATIOS[1] * first, main))
            network = replace(network, self_ensemble="none")
        return replace(network, experts=(*experts, (math.inf, main)), phases=phases)
    except ValueError as e:
        raise click.UsageError(f"--channels, --blocks, --expert, --phases: {e}") from e


def _initial_network(
    ctx: click.Context, init: str, wanted: "NetworkConfig"
) -> tuple["NetworkConfig", dict[str, "Tensor"]]:
    """The weights to start from and the shape to train: theirs, with more blocks if given."""
    from diffcodec.models.model import load_weights
    from diffcodec.training.config import start_of

    with failing_as(init):
        has, weights = load_weights(init)
    if any(_is_given(ctx, name) for name in ("preset", "backbone", "channels", "color")):
        raise click.UsageError(
            "--init has a shape; leave out --preset, --backbone, --channels and --color"
        )
    network = _shaped(ctx, has)
    for i, (_, shape) in enumerate(network.experts):
        begin = has.experts[start_of(i, len(network.experts), len(has.experts))][1]
        option = "--expert" if shape is not network.main else "--blocks"
        more = [a >= b for a, b in zip(shape.blocks, begin.blocks, strict=False)]
        if not (shape.is_like(begin) and all(more)):
            raise click.UsageError(
                f"--init has channels {_text(begin.channels)}, blocks {_text(begin.blocks)} and "
                f"patch {begin.patch}; {option} may only add blocks to each"
            )
    up_to = 0.0 if network.phases else wanted.self_ensemble_up_to
    kind = wanted.self_ensemble
    return replace(network, self_ensemble=kind, self_ensemble_up_to=up_to), weights


def _text(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def _train_config(ctx: click.Context, saved: Path | None) -> "TrainConfig":
    """The configuration from the options, and from a saved one where an option is not given."""
    from diffcodec.networks.config import NetworkConfig
    from diffcodec.training.config import INIT_WARMUP, TrainConfig, with_ensemble

    run, network = ({}, NetworkConfig()) if saved is None else _read_config(saved)
    if saved is None and ctx.params["init"] is not None:
        run["warmup"] = INIT_WARMUP
    for name in {f.name for f in fields(TrainConfig)} & set(ctx.params):
        value = ctx.params[name]
        if _is_given(ctx, name) or (name not in run and value is not None):
            run[name] = value
    if ctx.params["init"] is None:
        network = _shaped(ctx, network)
    if saved is None:
        network = with_ensemble(network, run["augment"])
    if _is_given(ctx, "self_ensemble_up_to") and not network.phases:
        network = replace(network, self_ensemble_up_to=ctx.params["self_ensemble_up_to"])
    return TrainConfig(**run, network=network)


def _read_config(path: Path) -> tuple[dict[str, Any], "NetworkConfig"]:
    """The settings of a run, and its network."""
    from diffcodec.models.layout import read_network
    from diffcodec.training.config import TrainConfig
    from diffcodec.training.run import check_settings

    try:
        run = json.loads(path.read_text())
        network = read_network(run.pop("network"))
        check_settings(TrainConfig(**run, network=network))
    except (ValueError, LookupError, TypeError, AttributeError, DiffcodecError) as e:
        raise CommandError(f"its {path.name} is damaged ({e}); start a new run") from e
    return run, network


def _check_fit(ctx: click.Context, config: "TrainConfig") -> None:
    given = _is_given(ctx, "self_ensemble_up_to") and ctx.params["self_ensemble_up_to"] > 0
    if given and (config.network.phases or config.network.self_ensemble == "none"):
        raise click.UsageError(
            "--self-ensemble-up-to is for a network with self-ensemble, which it has neither with "
            "--augment none nor in phases; leave it out"
        )
