"""What grows with a fleet: the coordinator by its sites, the repository by its devices that poll."""
