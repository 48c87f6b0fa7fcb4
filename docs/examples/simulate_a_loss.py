"""Replay a plan over a recorded network, lose a machine on the way, and see what it costs."""

from sim.api import Faults, open_network, plan, preset_job, simulate

job = preset_job("gpt2-xl", sequence_length=1024, global_batch=64)
network = open_network(trace="four_cities", gpu="t4")
planned = plan(job, network, evaluations=200).plan

calm = simulate(job, network, plan=planned, steps=20)
print(f"undisturbed: {calm.tokens_per_s:,.0f} tokens a second")

lost = planned.device(0)
faults = Faults().leave(lost, at_s=calm.total_s / 2)
result = simulate(job, network, plan=planned, steps=20, save_every=5, faults=faults)
print(f"without {lost} from the middle on: {result.tokens_per_s:,.0f} tokens a second")
for event in result.events:
    print(f"at {event.at_s:.0f} s: {event.text}")
