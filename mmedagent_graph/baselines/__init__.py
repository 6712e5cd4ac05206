"""The systems that MMedAgent-RL is compared with: graphs with the input and the output of `build_graph`.

Calls of models for one case, with the defaults (`tests/unit/baselines` counts them), beside what was published:

| system | who answers | calls | published |
|---|---|---|---|
| `build_graph` (MMedAgent) | triage, 3 specialists, attending | 5 | 5 (paper) |
| `single` | one model | 1 | 1 |
| `self_consistency` | 5 samples of it | 5 | 5 (MedAgents' paper), 6 ([1], with examples) |
| `majority_vote` | triage, 3 specialists | 4 | - |
| `one_specialist` | triage, 1 specialist | 2 | - |
| `random_triage` in `build_graph` | 3 specialists, attending | 4 | - |
| `all_specialties` | 7 specialists, attending | 8 | - |
| `med_agents` | no objection ... all object in 3 rounds | 18 ... 56 | 18 ... 56 (code), 20.3 (mean, [1]) |
| `med_agents`, no options | the same | 13 ... 41 | - |
| `md_agents`, low | checker, clinician | 2 | 9 (code, with warm-ups and examples), 2 (MedAgentBoard) |
| `md_agents`, moderate | at once agreed ... 3 rounds of 3 turns | 13 ... 71 | 28 ... 431 (code), 8 (MedAgentBoard) |
| `md_agents`, high | checker, recruiter, 3 teams, decision maker | 15 | 31 (code), 15 (MedAgentBoard) |
| `md_agents`, mean | | by the cases | 9.3 ([1], 3 experts) |

[1] is the paper of MDAgents. The codes of both are those of their authors; MedAgentBoard has rewritten MDAgents.

Every call shows the case with its images. All of a system's roles are played by the one model it is given, decoded as
it is; calls that do not need one another are made in parallel; `usage` counts them by role. See each module for where
a system's paper and code differ, and what is done here.
"""

from mmedagent_graph.baselines.md_agents import md_agents
from mmedagent_graph.baselines.med_agents import med_agents
from mmedagent_graph.baselines.simple import (
    all_specialties,
    majority_vote,
    one_specialist,
    random_triage,
    self_consistency,
    single,
)

__all__ = [
    "all_specialties",
    "majority_vote",
    "md_agents",
    "med_agents",
    "one_specialist",
    "random_triage",
    "self_consistency",
    "single",
]
