"""`python -m loci` is `loci`."""

from loci.main import main

if __name__ == "__main__":
    main()
