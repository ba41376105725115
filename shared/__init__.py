"""What both stages stand on. Imports neither of them."""

from shared.disk.cache_folder import find_room_for_caches

find_room_for_caches()  # here, because Python imports this before anything else of Tessera, and most libraries
