"""Ray Serve: deployments, replicas, routing, and the launch of all.

`remote` is a model in other processes as the ingress sees it: room, retries, what Ray raises.
"""
