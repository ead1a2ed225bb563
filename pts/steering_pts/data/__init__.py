"""Problems, and the data sets that they are read from: formats, layouts, filters."""

from steering_pts.data.filters import Condition, parse_conditions, read_ids
from steering_pts.data.layouts import LAYOUTS, Layout, suggest_oracle
from steering_pts.data.loading import load_problems
from steering_pts.data.options import DataOptions
from steering_pts.data.problem import Problem, problem_id
from steering_pts.data.source import FORMATS, Format

__all__ = [
    "FORMATS",
    "LAYOUTS",
    "Condition",
    "DataOptions",
    "Format",
    "Layout",
    "Problem",
    "load_problems",
    "parse_conditions",
    "problem_id",
    "read_ids",
    "suggest_oracle",
]
