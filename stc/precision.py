"""The numpy type of a network's tensors, by the precision of its bundle."""

from __future__ import annotations

from typing import Any

import numpy as np

from stc.manifest import Precision

NETWORK_DTYPES: dict[Precision, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
}
