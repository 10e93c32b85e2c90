"""The two factors of a LoRA."""

from dataclasses import dataclass

from convert.tensors.sources import RowSource


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The change of one weight: alpha / rank * B @ A. A is (rank, n_in), B is (n_out, rank)."""

    a: RowSource
    b: RowSource
    alpha: float

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return self.a.shape[0]
