"""The server on the VPS: accepts links from agents and visitors on public ports."""
