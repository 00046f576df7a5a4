"""."""

from extensions.schedules.annealed import Annealed
from extensions.schedules.even import Even
from extensions.schedules.proportional import Proportional
from extensions.schedules.round_robin import RoundRobin
from extensions.schedules.staged import Staged
from extensions.schedules.temperature import Sqrt, Temperature

SCHEDULES = {"proportional": Proportional, "round-robin": RoundRobin, "sqrt": Sqrt, "temperature": Temperature,
             "annealed": Annealed, "staged": Staged, "even": Even}
