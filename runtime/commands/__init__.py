"""What ``gemlane`` commands do. Each module declares its arguments and runs; `runtime.cli` lists them."""
