// A payment and its event, in one transaction.
//
//     DATABASE_URL=jdbc:postgresql://localhost/app java -cp postgresql.jar examples/producers/Payment.java alice 1250

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.UUID;

public class Payment {
    /** Both, or neither: nothing is sent to a broker that a rollback could not take back. */
    static void receive(Connection connection, String account, long cents) throws SQLException {
        var payment = UUID.randomUUID();
        connection.setAutoCommit(false);
        try (var pay = connection.prepareStatement("INSERT INTO payments VALUES (?, ?, ?)");
                var tell = connection.prepareStatement(
                        // The parameter is JSON already where a library writes it: ?::jsonb.
                        "INSERT INTO outbox_events (id, aggregate_id, event_type, payload_json)"
                                + " VALUES (?, ?, ?, jsonb_build_object('account', ?::text, 'cents', ?::bigint))")) {
            pay.setObject(1, payment);
            pay.setString(2, account);
            pay.setLong(3, cents);
            pay.executeUpdate();
            tell.setObject(1, UUID.randomUUID());
            tell.setObject(2, payment);
            tell.setString(3, "payment.received.v1");
            tell.setString(4, account);
            tell.setLong(5, cents);
            tell.executeUpdate();
            connection.commit();
        } catch (SQLException e) {
            connection.rollback();
            throw e;
        }
    }

    public static void main(String[] args) throws SQLException {
        try (var connection = DriverManager.getConnection(System.getenv("DATABASE_URL"));
                var statement = connection.createStatement()) {
            statement.execute("CREATE TABLE IF NOT EXISTS payments"
                    + " (id uuid PRIMARY KEY, account text NOT NULL, cents bigint NOT NULL)");
            receive(connection, args[0], Long.parseLong(args[1]));
        }
    }
}
