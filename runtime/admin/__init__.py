"""The admin API: adapters listed, added, replaced, removed and pinned, as a view of the adapters' store."""
