"""Trying a fleet's whole procedure before anybody asks: ``dlfd-fleet certify``.

A run trains a fleet, makes its reference models, erases marked people by the fleet's own job, and lets the same audit
judge three models: the original, in which they are surely remembered; the erased one; and one retrained without them.
Many runs say how often the audit is right (:class:`~dlfd_fleet.report.procedure.ProcedureCertificate`).
"""
