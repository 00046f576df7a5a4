"""--schedule: `cls(loaders, seed, epochs, **options)`, called with an epoch (from 0), is its Steps of {task: batch}."""

from extensions.schedules.annealed import ANNEALED
from extensions.schedules.even import EVEN
from extensions.schedules.proportional import PROPORTIONAL
from extensions.schedules.round_robin import ROUND_ROBIN
from extensions.schedules.staged import STAGED
from extensions.schedules.temperature import SQRT, TEMPERATURE
from extensions.technique import by_name

SCHEDULES = by_name(PROPORTIONAL, ROUND_ROBIN, SQRT, TEMPERATURE, ANNEALED, STAGED, EVEN)
