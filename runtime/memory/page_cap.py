"""How many pages a cap on host memory allows."""

from __future__ import annotations

from dataclasses import dataclass

from stc.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class PageCap:
    """Pages of `page_bytes` each, whose representatives of `representative_bytes` each stay in
    host memory wherever the page is.

    window: pages on the device. held: in host memory. spilled: in the spill file.
    """

    window: int
    held: int
    spilled: int
    page_bytes: int
    representative_bytes: int

    @property
    def pages(self) -> int:
        """All pages there can be."""
        return self.window + self.held + self.spilled


def page_cap(
    most_bytes: int,
    *,
    window: int,
    spill_bytes: int,
    page_bytes: int,
    representative_bytes: int,
) -> PageCap:
    """What fits `most_bytes` of host memory beside the representatives of `window` pages.

    A spill file of `spill_bytes` is used as far as the representatives of its pages take half of
    the memory at most. Raises SettingsError when not even one page fits.
    """
    left = most_bytes - window * representative_bytes
    spilled = min(spill_bytes // page_bytes, max(0, left) // 2 // representative_bytes)
    held = (left - spilled * representative_bytes) // (page_bytes + representative_bytes)
    if held < 1:
        least = page_bytes + (window + 1) * representative_bytes
        raise SettingsError(
            "--host-memory-mb",
            f"got {most_bytes / 1e6:g} MB",
            f"at least {least / 1e6:g}, one frame's page and what the window's are found by",
        )
    return PageCap(
        window=window,
        held=held,
        spilled=spilled,
        page_bytes=page_bytes,
        representative_bytes=representative_bytes,
    )
