"""What the gallery restores before each tutorial, so that none depends on another."""

from __future__ import annotations

from typing import Any

import imageio_ffmpeg
import matplotlib as mpl
import matplotlib.pyplot as plt
import torch


def reset(gallery_conf: dict[str, Any], fname: str) -> None:
    """Restore plotting defaults, the default dtype and the global random state."""
    del gallery_conf, fname  # the gallery's calling convention
    plt.close("all")
    mpl.rcdefaults()
    mpl.use("agg")
    mpl.rcParams["animation.ffmpeg_path"] = imageio_ffmpeg.get_ffmpeg_exe()
    mpl.rcParams["figure.constrained_layout.use"] = True
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
