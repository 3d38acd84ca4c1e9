"""Which step is full: fixed rules and lists, relational cache scheduling, relative change, verified drafts."""
