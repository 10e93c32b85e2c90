"""The engine process: requests in, text out, many sequences in one batch. It knows no HTTP and no dialect."""
