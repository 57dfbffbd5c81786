"""What `python3 /usr/lib/relay-agent` runs, with that folder first among those with modules."""

from relay_agent.__main__ import main

main()
