"""Plan a run before anything is rented: who holds which layers, how long a step takes, and why."""

from sim.api import open_network, plan, preset_job

job = preset_job("gpt2-xl", sequence_length=1024, global_batch=64)
network = open_network(trace="four_cities", gpu=("t4", "Tokyo=a10"))

found = plan(job, network, evaluations=200)
print(f"{found.plan.n_stages} stages x {found.plan.n_replicas} replicas")
for replica, pipeline in enumerate(found.plan.placement):
    for stage, device in enumerate(pipeline):
        first, stop = found.plan.partition[stage]
        print(f"replica {replica}, stage {stage}: {device} holds layers {first} to {stop - 1}")
print(f"a step takes {found.plan.predicted_step_s:.2f} s, and at least {found.lower_bound_s:.2f} s")
for reason in found.plan.reasons:
    print("-", reason)
