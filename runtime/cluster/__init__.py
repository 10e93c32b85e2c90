"""The engine as replicas on a Ray cluster: another implementation of `runtime.engines.protocol.Engine`.

Needs the optional extra ``gemlane[cluster]``. Each replica of a Ray Serve application runs the ordinary engine process.
"""
