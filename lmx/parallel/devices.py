"""What accelerators can do at most: the denominator of MFU."""

from __future__ import annotations

from collections.abc import Sequence

# Dense bf16 FLOP/s of one device as its maker states it, by a part of the name that
# JAX gives it; the first that is found counts.
PEAK_BF16_FLOPS = {
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def peak_flops(devices: Sequence) -> float | None:
    """Returns the bf16 FLOP/s of all `devices` together, or None if one is unknown."""
    total = 0.0
    for device in devices:
        known = [f for name, f in PEAK_BF16_FLOPS.items() if name in device.device_kind]
        if not known:
            return None
        total += known[0]
    return total
