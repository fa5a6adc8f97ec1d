"""Take-overs: when an expert acts in the learner's place. All kinds are imported, so that a yaml needs only a name."""

from data_modules import value_trigger as value_trigger
from data_modules.takeover.plans import Always as Always
from data_modules.takeover.plans import Geometric as Geometric
from data_modules.takeover.plans import ReverseCurriculum as ReverseCurriculum
from data_modules.takeover.plans import Uniform as Uniform
from data_modules.takeover.plans import Window as Window
from data_modules.takeover.protocol import Takeover as Takeover
