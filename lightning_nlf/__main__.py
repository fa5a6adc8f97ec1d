from lightning_nlf.cli import main

if __name__ == "__main__":
    main()
