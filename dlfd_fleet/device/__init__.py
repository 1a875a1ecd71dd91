"""Run exported models on a device with ONNX Runtime, and keep the device up to date.

It needs no torch, Flower or MLflow. The command is ``dlfd-fleet-device``. In Python,
:class:`~dlfd_fleet.device.inference.DeviceModel` predicts images with a file::

    model = DeviceModel(Path("model.onnx"))
    print(model.named(model.predict(images)))

The agent (:mod:`~dlfd_fleet.device.agent`) polls the signed repository, installs releases, deletes models under the
floor, and reports. Stable: the command and its files.
"""
