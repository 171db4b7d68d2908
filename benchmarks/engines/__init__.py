"""One module per engine; each holds a class ``Adapter`` (see ``benchmarks.adapter``)."""
