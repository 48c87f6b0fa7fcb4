"""Where else a run's events go: TensorBoard, Weights & Biases, OpenTelemetry. One module each, one seam.

An outlet takes the driver's events as they are. Its package is imported only when it is asked for, and one
that breaks is left behind with a warning: a run does not end because its curves have nowhere to go.
"""
