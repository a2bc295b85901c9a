from lightning.pytorch import Callback


class ECGDashboard(Callback):
    pass
