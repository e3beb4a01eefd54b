"""Patients of a known mechanism, written as the raw tables that real data come in. See docs/simulation.md."""

from ehrlab.simulation.mimic3 import write_mimic3
from ehrlab.simulation.mimic4 import write_mimic4
from ehrlab.simulation.population import simulate
from ehrlab.simulation.specification import SPECIFICATION
from ehrlab.simulation.trinetx import write_trinetx

__all__ = ["SPECIFICATION", "simulate", "write_mimic3", "write_mimic4", "write_trinetx"]
