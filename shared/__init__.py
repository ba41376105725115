"""What both stages stand on. Imports neither of them."""

from shared.disk.cache_folder import find_room_for_caches
from shared.waiting import spin_briefly

# Here, because Python imports this before anything else of Tessera, and most libraries read their settings on import.
find_room_for_caches()
spin_briefly()
