"""The engine as the web side sees it: a protocol, and the child process that implements the protocol."""
