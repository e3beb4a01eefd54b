"""Raw tables in, MEDS events out: one file per source."""

from ehrlab.data.sources.meds_folder import open_meds
from ehrlab.data.sources.mimic import open_mimic
from ehrlab.data.sources.source import Source
from ehrlab.data.sources.trinetx import open_trinetx

__all__ = ["Source", "open_meds", "open_mimic", "open_trinetx"]
