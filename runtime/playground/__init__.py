"""The playground: a page at ``/`` that talks to the server by its public API alone."""
