"""The commands info, verify, models and doctor."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from diffcodec.cli.decode import decode_data
from diffcodec.cli.options import (
    device_option,
    file_model_option,
    json_option,
    limit_options,
    paths_argument,
    quiet_option,
)
from diffcodec.cli.program import cli, examples
from diffcodec.cli.running import (
    EXIT_FAILURE,
    check_device,
    failing_as,
    for_each,
    load_given,
    one_by_one,
    parse_data,
    print_line,
    printable,
)
from diffcodec.container.info import describe, format_description
from diffcodec.container.parts import Container
from diffcodec.errors import DiffcodecError, ModelMismatchError
from diffcodec.limits import Limits
from diffcodec.models.file import (
    DEFAULT_MODEL,
    ModelInfo,
    count_parameters,
    find_model_path,
    model_info,
    model_path,
    read_model_info,
    shipped_models,
)
from diffcodec.system.files import read_file

CANNOT = "THIS MACHINE CANNOT EXCHANGE FILES: it computes other probabilities"


@cli.command(short_help="Show what files hold.", epilog=examples("diffcodec info photo.dfc"))
@paths_argument
@file_model_option
@click.option(
    "--measure", is_flag=True, help="Code files anew that do not say what a timestep takes."
)
@limit_options
@json_option
def info(
    *, paths: list[str], model: str | None, measure: bool, limits: Limits, as_json: bool
) -> None:
    """Show the header of files, and the bits that each timestep takes.

    Small files do not store the latter: --measure codes them again, if their model is at hand.
    """
    with failing_as(model or ""):
        given = model_info(model_path(model)) if model else None

    def work(path: str) -> None:
        data = read_file(path)
        container = parse_data(data, limits)
        if measure:
            container = _measured(data, container, model, limits)
        used = (given or _shipped_model(container)) if container.uses_model else None
        if used is None:
            described = describe(data, container)
        else:
            used.check_made(container.model)
            levels = {name: plan.levels for name, plan in used.plans.items()}
            described = describe(data, container, used.name, levels)
        text = json.dumps({"input": path} | described)
        print_line(text if as_json else f"{printable(path)}\n{format_description(described)}")

    for_each([(path,) for path in paths], one_by_one(work), as_json=as_json)


def _measured(data: bytes, container: Container, model: str | None, limits: Limits) -> Container:
    from diffcodec.codec.timesteps import measure_marks

    try:
        return measure_marks(data, model, limits)
    except ModelMismatchError:
        raise
    except DiffcodecError:  # whether it decodes is for verify to say
        return container


def _shipped_model(container: Container) -> ModelInfo | None:
    try:
        return model_info(find_model_path(container.model))
    except ModelMismatchError:
        return None


@cli.command(
    short_help="Check that files decode.",
    epilog=examples(
        "diffcodec verify photo.dfc",
        "diffcodec verify -r coded",
    ),
)
@paths_argument
@file_model_option
@click.option(
    "--structure",
    is_flag=True,
    help="Check the structure and all checksums but that of the pixels, without decoding.",
)
@limit_options
@quiet_option
def verify(
    *, paths: list[str], model: str | None, structure: bool, limits: Limits, quiet: bool
) -> None:
    """Decode files in full and check their pixels against their checksums."""

    def work(path: str) -> None:
        data = read_file(path)
        if structure:
            parse_data(data, limits)
        else:
            decode_data(data, timestep=None, model=model, progress=alone, limits=limits)
        if not quiet:
            print_line(f"{printable(path)}: OK")

    alone = len(paths) == 1 and not quiet
    load_given(model)
    for_each([(path,) for path in paths], one_by_one(work), progress=not quiet)


@cli.command(short_help="List the shipped models.", epilog=examples("diffcodec models"))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per model.")
def models(*, as_json: bool) -> None:
    """List the models that come with the package."""
    paths = shipped_models()
    if not paths:
        click.echo("no models come with this installation; give one by --model", err=True)
    for path in paths:
        with failing_as(path.stem):
            about, data = read_model_info(path)
            plans = [f"{name} {len(plan.levels)}" for name, plan in about.plans.items()]
            costs = [f"{name} {cost / 1e6:.1f}" for name, cost in about.multiplications().items()]
            rows = {
                "id": about.id.hex(),
                "arithmetic": about.arithmetic,
                "parameters": count_parameters(data),
                "size": f"{len(data)} bytes",
                "timesteps": ", ".join(plans),
                "multiplications": f"{', '.join(costs)} million a pixel",
                **about.about,
            }
            if as_json:
                sizes = {"parameters": count_parameters(data), "bytes": len(data)}
                steps = {name: len(plan.levels) for name, plan in about.plans.items()}
                named = {"name": about.name, "default": about.name == DEFAULT_MODEL}
                said = named | {"id": about.id.hex(), "arithmetic": about.arithmetic} | sizes
                said |= {"timesteps": steps, "multiplications": about.multiplications()}
                print_line(json.dumps(said | {"about": about.about}))
                continue
            title = f"{about.name} (default)" if about.name == DEFAULT_MODEL else about.name
            print_line("\n".join([title, *(f"  {key:14} {value}" for key, value in rows.items())]))


@cli.command(
    short_help="Check that this machine computes what others compute.",
    epilog=examples("diffcodec doctor"),
)
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@device_option
@json_option
def doctor(names: tuple[str, ...], device: str, as_json: bool) -> None:
    """Check that this machine computes what others compute, for the shipped models or those given.

    Files decode wherever the known answers come out: those of the parts that all models share,
    and of each model's network and chain. Exits with 1 where one does not.
    """
    check_device(device)
    from diffcodec.models.known_answers import (
        SHARED_ANSWERS,
        differing,
        environment,
        model_answers,
        shared_answers,
    )
    from diffcodec.models.model import load_model
    from diffcodec.networks.devices import describe_device, find_device

    wrong_parts = differing(shared_answers(), SHARED_ANSWERS)
    where = {"device": describe_device(find_device(device))}
    results: dict[str, Any] = {"environment": environment() | where, "shared": wrong_parts}
    results["models"] = {}
    if not as_json:
        rows = results["environment"] | {"shared parts": _verdict(SHARED_ANSWERS, wrong_parts)}
        print_line("\n".join(f"{key:14} {value}" for key, value in rows.items()))

    def work(name: str) -> None:
        model = load_model(name, device=device)
        expected = model.info.answers
        if not expected:
            raise ModelMismatchError("its file has no known answers; export it again")
        wrong = differing(model_answers(model), expected)
        results["models"][name] = wrong
        if not as_json:
            print_line(f"{model.info.name:14} {_verdict(expected, wrong)}")

    jobs = [(name,) for name in names or [path.stem for path in shipped_models()]]
    failed = None
    try:
        for_each(jobs, one_by_one(work))
    except SystemExit as e:  # of a model that cannot be checked: what the others say is printed yet
        failed = e
    exchanges = not wrong_parts and not any(results["models"].values())
    if as_json:
        known = None if exchanges and failed else exchanges
        print_line(json.dumps(results | {"exchanges_files": known}))
    if failed is not None:
        raise failed
    if not as_json:
        can = "this machine can exchange files with every other that says so"
        print_line(can if exchanges else CANNOT)
    if not exchanges:
        sys.exit(EXIT_FAILURE)


def _verdict(expected: Iterable[str], wrong: Sequence[str]) -> str:
    return ", ".join(f"{name} {'DIFFERS' if name in wrong else 'ok'}" for name in expected)
