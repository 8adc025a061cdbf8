"""How long the inner loops take, against their twins and against what this machine could do.

python -m benchmarks.splat        projection and compositing of Gaussians
python -m benchmarks.dmtet        the neutral head's surface and its gradients
python -m benchmarks.mlp          the head's dynamic networks
python -m benchmarks.train_step   a whole training step of the avatar
python -m benchmarks.decode       reading videos, against FFmpeg alone
python -m benchmarks.tracking     the tracker, against first-order optimisation; from how far off

Each takes ``--json FILE`` and ``--quick`` (under 40 s).
"""
