"""What fits a model in phases to one image: a scale and a shift of each parameter of each phase."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int8

from diffcodec.arrays import Array, Int8s
from diffcodec.diffusion.phases import PHASES
from diffcodec.errors import FormatError

STEPS = 64  # of a unit
VARIABLES = 3  # x, z_1 and all above

Table = Int8[Int8s, "phases 2 parameters"]  # scales, and shifts


@dataclass(frozen=True)
class Adaptation:
    """``parameters (1 + scale / 64) + shift / 64``, exact: integers make it.

    Attributes:
        tables: of variables, by their numbers: 0 for x, 1 for z_1, 2 for those above. Those of a
            variable without one stay as they are.
    """

    tables: Mapping[int, Table]

    @cached_property
    def _factors(self) -> Mapping[int, Float64[Array, "phases 2 parameters"]]:
        unchanged = np.array([STEPS, 0])[:, None]
        return {which: (table + unchanged) / STEPS for which, table in self.tables.items()}

    def apply(
        self, timestep: int, number: int, parameters: Float64[Array, "parameters rows columns"]
    ) -> Float64[Array, "parameters rows columns"]:
        """The parameters of a phase as they are to be taken.

        Args:
            timestep: of the variable that they tell.
            number: of the phase.
            parameters: by the model.

        Raises:
            ValueError: there are not so many as the table has.
        """
        table = self._factors.get(min(timestep, VARIABLES - 1))
        if table is None:
            return parameters
        scale, shift = table[number]
        if len(scale) != len(parameters):
            raise ValueError(
                f"an adaptation of {len(scale)} parameters, expected {len(parameters)}, as the "
                "model has"
            )
        adapted: Array = parameters * scale[:, None, None] + shift[:, None, None]
        return adapted

    def pack(self) -> bytes:
        """The bytes: of each variable how many parameters it has, and the table."""
        parts = []
        for which in range(VARIABLES):
            table = self.tables.get(which)
            parts.append(b"\0" if table is None else bytes([table.shape[2]]) + table.tobytes())
        return b"".join(parts)

    @classmethod
    def unpack(cls, data: bytes) -> "Adaptation":
        """Inverse of :meth:`pack`.

        Raises:
            FormatError: if these are no such bytes.
        """
        tables, start = {}, 0
        for which in range(VARIABLES):
            count = data[start] if start < len(data) else 0
            end = start + 1 + 2 * len(PHASES) * count
            if end > len(data):
                raise FormatError(f"an adaptation of {len(data)} bytes, expected {end} or more")
            if count:
                table = np.frombuffer(data[start + 1 : end], np.int8)
                tables[which] = table.reshape(len(PHASES), 2, count)
            start = end
        if start != len(data) or not tables:
            raise FormatError(f"an adaptation of {len(data)} bytes, of which {start} are tables")
        return cls(tables)
