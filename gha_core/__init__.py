"""gha_core: everything that turns footage into a head avatar, without any orchestration.

Nothing in this package imports Prefect or DVC; see ``tasks`` for the stages and ``flows`` for
what runs them.
"""
