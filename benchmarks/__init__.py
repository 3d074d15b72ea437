"""What is timed, and against whom: registrations of real images, the scan, and the stages of one registration.

    python -m benchmarks.registration    RegMamba beside other tools
    python -m benchmarks.scan            the scan backends beside other scans, and the machine's memory
    python -m benchmarks.stages          where the time of one `register` goes, and how it grows
    python -m benchmarks.report          tables into docs/benchmarks.md, pictures into docs/benchmarks/

The first three keep their numbers in docs/benchmarks/*.json, the fourth reads them.
"""
