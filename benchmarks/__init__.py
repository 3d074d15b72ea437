"""What is timed, and against whom: registrations of real images, the scan, and the stages of one registration.

    python -m benchmarks.registration    RegMamba beside other tools
    python -m benchmarks.scan            the scan backends beside other scans, and the machine's memory
    python -m benchmarks.stages          where the time of one `register` goes, and how it grows
    python -m benchmarks.ablation        networks that differ in one part
    python -m benchmarks.confidence      whether the map of the uncertainty tells the error
    python -m benchmarks.report          tables into docs/benchmarks.md, pictures into docs/benchmarks/

All but the last keep their numbers in docs/benchmarks/*.json, which that one reads.
"""
