"""Settings of methods that differ from preset `cacher` in one thing alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stc.runtime.evaluate.method import Method
from stc.settings import PRESETS, Settings


@dataclass(frozen=True, kw_only=True)
class CacherLike(Method):
    """reference_interval and recompute_ratio: as in `stc.settings.Settings`."""

    reference_interval: int = PRESETS["cacher"].reference_interval
    recompute_ratio: float = PRESETS["cacher"].recompute_ratio

    def __post_init__(self) -> None:
        self.cacher()

    def cacher(self) -> Settings:
        """The same settings of STC-Cacher, which keeps all tokens. Raises SettingsError."""
        return replace(
            PRESETS["cacher"],
            reference_interval=self.reference_interval,
            recompute_ratio=self.recompute_ratio,
        )
