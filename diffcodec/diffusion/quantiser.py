"""The dithered quantiser's noise. No torch here."""


def first_sigma(steps: int) -> float:
    """Noise of a dithered quantiser of M steps: of M numbers one apart, all alike likely."""
    variance = (steps * steps - 1) / 12
    return float(variance**0.5)
