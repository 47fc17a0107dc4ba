"""The common ground of everything that runs: training, sweeps, batches, evaluations, servers.

- ``cluster``: the one way to start or join Ray, and to stop it;
- ``environment``: variables of this process, of workers and of a Ray of our own;
- ``resources``: what the machine or cluster has, and the refusal of more;
- ``storage``: a run's directory on a disk or in an object store, absolute paths, whole files;
- ``settings``: the same settings as before, or an error that names what differs;
- ``status``, ``stragglers``: what runs are doing, read from their directories.

Other rooms call neither ``ray.init`` nor ``ray.cluster_resources``. What one command alone needs
stays with it: how large its Ray is, which settings may change, what it asks for.
"""
