"""What a camera or a phone runs: ONNX Runtime on an exported file, and nothing of torch, Flower or MLflow.

:class:`dlfd_fleet.device.inference.DeviceModel` is the Python way, ``dlfd-fleet-device`` the command.
"""
